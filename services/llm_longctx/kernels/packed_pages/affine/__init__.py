"""Pages of codes with scales and zeros (8 and 4 bits), as the kernels of a GPU read them."""
