"""Big Transfer."""
