"""`fovea up` and `fovea doctor`: starting, supervising and checking the whole product on one machine."""
