"""A test bed: applications in real servers that tell a journal what happens in them, and the side that watches."""
