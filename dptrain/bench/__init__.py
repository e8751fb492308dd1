"""dptrain bench: how fast this machine trains, and where the time goes.

It runs the code of the trainer on random images in memory. Figures are medians over repetitions.
"""
