"""Applications: each reproduces a published result and only assembles components."""
