"""What has to do with the machine and nothing with embeddings. Open the module that you need; each stands alone.

console       what a person sees: one console on standard error, progress bars
run_files     the names of everything that a run leaves
files         whole files and folders through crashes, manifests, one writer a folder, the cache
distributed   the few collective operations; the identity with one process
transfer      batches to the device, numbers back, without waiting
signals       SIGTERM, SIGINT and SIGHUP end a run where nothing is lost
process       settings of the whole process: threads, memory
failures      what a library's error means: a lost peer, exhausted memory, a full disk
arguments     the command line's parser
processor     what this processor multiplies, tried once, and the products that follow from it
numerics      the precision and the products of a run: settled for all ranks, kept, taken again on resume
devices       what differs between CPU, CUDA and other devices
gpu           whether this torch has code for the card; what compiling cost last
values        a setting's value: checked against its type, written as TOML; how alike two names are
"""
