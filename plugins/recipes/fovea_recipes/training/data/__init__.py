"""Pictures with labels: how data sets are read, split, checked and augmented, whatever is trained on them."""
