"""Stage one: drives and frozen teachers in, a teacher cache out."""
