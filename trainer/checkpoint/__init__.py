"""What a run saves, and how it finds it again. README.md beside this file says what is promised.

    content         every key of a checkpoint: `RunState`, snapshot, restore (start here)
    sealed_folder   a folder that is whole or not used: save, find the newest, drop old ones
    identity        what must be equal for a resumed run to be the same run

When a run saves and how it resumes is told by `trainer.training.resume`.
"""
