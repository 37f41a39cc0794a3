"""How the weights of this service are made: generators of data, and recipes over them."""
