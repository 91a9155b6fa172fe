"""The protocol's endpoints, as an OAuth client sees them."""
