"""An index of tickets: what is like a text, and which tickets tell of the same problem. Start with `update.py`.

update.update_index(IndexRequest) -> Update    `trainer index`: embeds what is new or changed; stops and goes on
index.Index.open, search                       `trainer search`: found by a prefix, ranked by the full width, BM25
duplicates.find_duplicates -> Duplicates       `trainer duplicates`: groups of which every two reach a threshold
storage.read_index, write_index                the files of an index: replaced in one step, hashed, refused if damaged
ticket_texts.read_ticket_texts                 tickets of a file as ids and texts, prepared as queries are
show.py                                        JSON Lines and tables; command.py: the options of the three commands
"""
