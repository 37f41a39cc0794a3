"""The Servables of this service, one per kind of answer: a file in `models/` adds a card and a network."""
