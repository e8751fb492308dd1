"""dptrain bench: how fast this machine trains, and where the time goes.

Every figure is measured with the trainer's own code on random images in memory; medians over repetitions.
"""
