"""What training minimises, on embeddings that are never normalised: `tiled.inverse_norms` makes cosines of products.

Start with `matryoshka.py`.

matryoshka.matryoshka_mnrl                 multiple-negatives ranking at every Matryoshka dim, from one product
cosent.pairwise_ranking                    every positive pair above every negative one (CoSENT), at every dim
distillation.margin_mse                    cosines that differ as a teacher's scores do, at every dim
objective.batch_loss                       all of them over the layout of a batch
tiled.py                                   how MNRL and its gradients are computed tile by tile
"""
