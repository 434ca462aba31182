"""What a run on codes makes from its images: the untrained model, and held-out figures."""

from accelerate import Accelerator

from codec.codes import Codes
from codec.entropy.fit_indices import fit_frequencies, fit_trees
from codec.entropy.index_coder import IndexCoder
from train.entropy.frozen_codes import FrozenCodes, code_vectors
from train.entropy.held_out import encode_held_out
from train.entropy.index_crops import IndexDataset
from train.entropy.index_model import IndexModel
from train.entropy.index_validation import IndexValidation
from train.entropy.sections import IndexConfig, IndicesConfig


def build_index_model(settings: IndicesConfig, codes: Codes, dataset: IndexDataset) -> IndexModel:
    """The model as it begins: with trees and odds of the training images, and code vectors."""
    vectors = code_vectors(codes)
    model = IndexModel(codes.sizes, settings)
    model.start(fit_trees(dataset.images(), vectors), vectors)
    return model


def make_index_validation(
    config: IndexConfig, frozen: FrozenCodes, dataset: IndexDataset, accelerator: Accelerator
) -> IndexValidation | None:
    """The held-out set that the configuration names, or None.

    Raises:
        DataError: there is no such image, or none can be read.
    """
    planes = encode_held_out(config, frozen, accelerator)
    if planes is None:
        return None
    coders = {"tables": fit_frequencies(dataset.images(), code_vectors(frozen.codes))}
    present = frozen.present_coder()
    if isinstance(present, IndexCoder):
        coders["present"] = present
    return IndexValidation(planes, frozen.codes.strides, coders)
