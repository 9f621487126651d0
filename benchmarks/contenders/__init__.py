"""Ways to compute a hypergradient that benchmarks measure: ours, by hand, by other libraries."""
