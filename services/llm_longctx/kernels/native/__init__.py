"""The C++ kernels as one library: built at set-up, found at run time, absent without harm."""
