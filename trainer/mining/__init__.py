"""Labelled pairs in three phases, easy to hard, from raw tickets. Start with `build_pairs.py`.

build_pairs.build_pairs(Settings) -> Report    all of `trainer build-pairs`, from tickets to files of pairs
settings.Settings, parse_phases                what decides the outcome; bands of similarity by phase
sources.read_sources                           pairs of what tickets say of themselves, and their texts
labelled.take_labelled                         a hard negative for each of these pairs, phases by difficulty
positives.mine_positives, take_positives       candidates, groups that no negative touches, parts, positives
time_split.parts_by_time                       parts by time instead: train before, dev and test after
negatives.take_negatives                       negatives near enough to teach something
neighbours.similar_pairs, Similarity           who is like whom, by TF-IDF or an encoder, without an N x N matrix
augment.py                                     altered copies: a span left out, typing slips, round-trip translation
summary.Report, print_report                   figures for people and tools
command.py                                     the options of `trainer build-pairs`
"""
