"""How good an encoder is on held-out pairs, and how sure that is. Start with `judge.py`.

question.Question, SearchQuestion          what is asked of pairs, of a corpus
judge.judge(Question(...)) -> Judgement    `trainer evaluate` on pairs: models, thresholds, metrics, verdict
judge.conclude                             the same from embeddings; the end of a training run calls it
search_judge.judge_search                  `trainer evaluate` on a corpus
assessment.assess, assess_search           figures, paired intervals, losses, what was forgotten; diagnostic.py
verdict.decide                             the verdict, and the sentences that say it: one rule for pairs and search
metric_choice.choose_metric                what a judgement goes by: labels, or search where there are positives alone
pair_metrics.METRICS                       every metric of pairs by name; a new one is added there and nowhere else
search.search                              how well queries find their right answers in a corpus, exactly and in blocks
search_set.SearchSet, SearchedTexts        a corpus, or the texts of pairs, searched by embeddings, by BM25, by both
search_scores                              what ranks candidates: embeddings at every dim, BM25, both fused
type_comparison.compare_types              what a search loses at fewer dims, or in fewer bytes a coordinate
search_metrics.NAMES                       success@k, recall@k, MRR, nDCG, MAP over all orders of ties; new ones go here
bootstrap.bootstrap_pairs, interval        paired bootstrap; groups.py: which texts are drawn together
thresholds.fit_thresholds                  fitted on dev by prevalence.threshold_at_share, applied frozen
deployment.worth_in_deployment             what they are worth at another share of positives, in alerts a ticket
prevalence.threshold_at_share              the threshold by any rule; precision and F1 at another share of positives
alerts.count_alerts                        all pairs of unlabelled tickets, counted at every threshold
trained_pairs.data_of_chain, picked_by     what a model was trained on and picked by, as far as its runs tell
promote.promote                            whether a model replaces the deployed one; promote_command.py: its options
scoring.evaluate                           metrics of an encoder in the middle of training
show.print_judgement, print_search         tables in the terminal; command.py: the options of `trainer evaluate`
"""
