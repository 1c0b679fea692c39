"""Memory banks as a bundle stores them."""
