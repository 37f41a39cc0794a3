"""The gallery: one result for each kind of user, made by the commands that `docs/gallery.md` shows."""
