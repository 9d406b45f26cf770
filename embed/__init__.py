"""Stage one: frozen encoders turn unique items into features."""
