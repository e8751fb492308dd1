"""dptrain bench: speed of the trainer on this machine, on random images. Figures are medians over repetitions."""
