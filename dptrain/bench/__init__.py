"""dptrain bench: how fast this machine trains, and where the time goes.

Every figure is measured with the code of the trainer on random images in memory; medians over repetitions.
"""
