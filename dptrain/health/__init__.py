"""How a rank reports that it is alive, and learns that it must stop."""
