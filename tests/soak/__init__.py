"""Everything at once: two workers, nine cameras, three producers, and all that goes wrong in a week."""
