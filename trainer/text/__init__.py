"""Texts as text: pure functions of strings. Start with `canonical.py`.

canonical.canonical_form                   what copies of a text share; masks, splits and overlap checks go by it
markup.strip_markup                        HTML (also escaped), wiki and Markdown signs, pasted data, journal stamps
cleaning.strip_mail, strip_repeated        what a ticket says, without headers, signatures and boilerplate
cleaning.fingerprints, language            copies of a template; which language a text is in
leaks.without_title                        a body without the title that it repeats
masking.mask_text                          hide addresses, numbers, hosts, ids, names behind the labels of a form
tfidf.tfidf_matrix, pair_cosines           TF-IDF vectors and cosines
bm25.WordIndex                             BM25 of every word in every text, summed over the words of a query
"""
