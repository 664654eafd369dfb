"""The arithmetic of the losses, in one direction: operators -> a backend (eager, triton, cuda) -> what all backends share.

Shapes, everywhere in this package: N pairs of the whole batch, of which this rank has b local ones (b = N in one process); a row
block has m of its b rows; D the width of the student's features, E that of the teacher's. Rows are images, columns are texts.
"""
