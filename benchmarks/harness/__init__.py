"""What all benchmarks share: declarations, measuring, records, tables, figures and the command."""
