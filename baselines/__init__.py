"""Methods that the applications are compared with."""
