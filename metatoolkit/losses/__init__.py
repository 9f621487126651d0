"""Losses of classification and regression, as a bilevel problem takes them."""

from metatoolkit.losses.classification import checked_logits as checked_logits
from metatoolkit.losses.classification import cross_entropy as cross_entropy
from metatoolkit.losses.classification import episode_cross_entropy as episode_cross_entropy
from metatoolkit.losses.classification import sample_losses as sample_losses
from metatoolkit.losses.classification import transformed_cross_entropy as transformed_cross_entropy
from metatoolkit.losses.masked import masked_cross_entropy as masked_cross_entropy
from metatoolkit.losses.masked import masked_squared_error as masked_squared_error
from metatoolkit.losses.masked import split_mask as split_mask
from metatoolkit.losses.regression import squared_error as squared_error
from metatoolkit.losses.weighted import reweighted_cross_entropy as reweighted_cross_entropy
from metatoolkit.losses.weighted import weighted_cross_entropy as weighted_cross_entropy
