"""What training gains and loses on real pairs, and the same pairs through sentence-transformers."""
