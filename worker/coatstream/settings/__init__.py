"""Every option of coatstream, and how it is read."""
