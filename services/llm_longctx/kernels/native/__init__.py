"""C++ kernels as one library: built at set-up, found at run time; torch serves where there is none."""
