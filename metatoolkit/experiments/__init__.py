"""The harness of experiments: configurations, recorded runs, studies, tuning, pages and figures."""
