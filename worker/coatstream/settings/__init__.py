"""Every setting of coatstream, and how it is read."""
