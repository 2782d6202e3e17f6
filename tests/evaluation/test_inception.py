"""FID's network equals pytorch-fid's on the same random weights, and pictures are resized as by clean-fid."""

import numpy as np
import pytest
import torch
from sana_native.evaluation.inception import Inception, build_inception, inception_features, resized


@pytest.fixture(scope="module")
def reference():
    import pytorch_fid.inception as module

    torch.manual_seed(4)
    state = {}

    def random_weights(*_, **__):
        """In place of a download, for the network that it is loaded into."""
        plain = module._inception_v3(num_classes=1008, aux_logits=False, weights=None)
        for key, value in plain.state_dict().items():
            if key.endswith("running_var"):
                value.uniform_(0.5, 2.0)
            elif value.is_floating_point():
                value.normal_(0, 0.05 if value.ndim > 1 else 0.2).add_(1.0 if key.endswith("bn.weight") else 0.0)
        state.update(plain.state_dict())
        return state

    before, module.load_state_dict_from_url = module.load_state_dict_from_url, random_weights
    network = module.InceptionV3([3], resize_input=False, normalize_input=False)
    module.load_state_dict_from_url = before
    return network.eval(), state


def test_features_are_pytorch_fids(reference):
    network, state = reference
    pictures = [np.random.default_rng(i).integers(0, 256, (299, 299, 3)).astype(np.uint8) for i in range(2)]
    with torch.inference_mode():
        expected = network(torch.stack([resized(one) for one in pictures]))[0][:, :, 0, 0].numpy()
    found = inception_features(build_inception(state), pictures)
    assert found.shape == (2, 2048) and np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("size", [(64, 96), (400, 320), (299, 299)])
def test_pictures_are_resized_as_by_clean_fid(size):
    from cleanfid.resize import build_resizer

    picture = np.random.default_rng(1).integers(0, 256, (*size, 3)).astype(np.uint8)
    expected = (build_resizer("clean")(picture) - 128) / 128
    assert np.array_equal(resized(picture).numpy(), expected.transpose(2, 0, 1))


def test_another_file_is_refused_with_what_is_wrong():
    with pytest.raises(ValueError, match="it is not FID's Inception v3, as Conv2d_1a_3x3.bn.bias is missing"):
        build_inception({"conv.weight": torch.zeros(1)})
    state = Inception().state_dict()
    with pytest.raises(ValueError, match="extra.weight is not expected"):
        build_inception(state | {"extra.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="Conv2d_1a_3x3.bn.bias has another shape"):
        build_inception(state | {"Conv2d_1a_3x3.bn.bias": torch.zeros(1)})
