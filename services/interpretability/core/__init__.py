"""The Experiment contract, its Report, the cell cache, the result store, and the models under study."""
