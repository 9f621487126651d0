"""Random keys, and the global generators of torch, Python and NumPy."""

from metatoolkit.randomness.keys import Keys as Keys
from metatoolkit.randomness.keys import Place as Place
from metatoolkit.randomness.keys import fold_in as fold_in
from metatoolkit.randomness.keys import go_to as go_to
from metatoolkit.randomness.keys import go_to_portable as go_to_portable
from metatoolkit.randomness.keys import has_moved as has_moved
from metatoolkit.randomness.keys import place as place
from metatoolkit.randomness.keys import portable as portable
from metatoolkit.randomness.keys import seeded as seeded
from metatoolkit.randomness.keys import undrawn as undrawn
from metatoolkit.randomness.side_by_side import SideBySide as SideBySide
from metatoolkit.randomness.streams import Stream as Stream
