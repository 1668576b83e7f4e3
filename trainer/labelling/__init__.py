"""People's labels, where a label tells most. Start with `session.py`.

pool.pool_of_pairs, pool_of_run -> Pool    labelled pairs of a file, of a run, with what a model and TF-IDF say of them
candidates.pool_of_tickets -> Pool         pairs out of raw tickets: each one's nearest, by a model and by TF-IDF
choice.choose                              which of them are asked, and by which rule
session.label                              the dialogue: asked, answered, undone, saved after each answer
screen.Screen                              a pair on a terminal, or in lines; keys
answers.Answers                            the file of pairs: who labelled each row, how it was chosen, when
agreement.compare                          how far two people agree: share, Cohen's kappa
command.py                                 the options of `trainer label`
"""
