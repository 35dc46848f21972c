"""Imported last by the fork server: what it holds is of no more concern to the garbage collector of any rank.

DeepSpeed collects garbage wherever it makes a ZeRO-3 engine, which took 0.3 s a rank over a million objects of imported
modules, and wrote to every page that ranks share with the server.
"""

import gc

gc.collect()
gc.freeze()
