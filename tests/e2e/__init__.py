"""The whole product, started once for the tests of this room."""
