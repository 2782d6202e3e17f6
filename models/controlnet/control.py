"""The host's CONTROL_NET of a SANA ControlNet, for its own Apply ControlNet, KSampler and the like."""

from ..dc_ae.latent_formats import SanaLatent
from ..runtime.base_control import BaseControlNet
from ..sana.config import SanaConfig
from ..sana.model import Sana
from .config import KINDS, SANA_1_5, SPRINT, kind_of


class SanaControlNet(BaseControlNet):
    """A SANA ControlNet as the host handles it. control_model: a `SanaControl` of `model.py`."""

    conds = ("attention_mask", "guidance")

    def latent_format_of(self, model):  # noqa: ARG002 - one for all bases
        return SanaLatent()

    def require_model(self, model) -> None:
        network = model.diffusion_model
        if not isinstance(network, Sana):
            raise ValueError(
                f"A SANA ControlNet was applied to a model of another family ({type(model).__name__}): bypass its "
                "Apply node, or load a SANA model with SANA Model Loader."
            )
        self.require_base(network.config)
        if not self.fits_vae(SanaLatent):
            raise ValueError(
                "The VAE of Apply ControlNet is another model's: connect the DC-AE of SANA DC-AE Loader, which encodes "
                "the control image for a SANA ControlNet."
            )

    def require_base(self, base: SanaConfig) -> None:
        config = self.control_model.config
        own, kind = config.blocks, kind_of(base)
        if base.hidden_size != own.hidden_size:
            raise ValueError(
                f"This ControlNet is for models of width {own.hidden_size}, and the model is {base.hidden_size} wide: "
                "load the ControlNet of the model's size (0.6B: 1152, 1.6B: 2240)."
            )
        if base.depth <= own.depth:
            raise ValueError(
                f"This ControlNet has {own.depth} blocks and needs a model of at least {own.depth + 1}, but the model "
                f"has {base.depth}: load the model that the ControlNet was made for."
            )
        if kind == SPRINT and SPRINT not in config.trained_for:
            raise ValueError(
                "This ControlNet was not trained for SANA-Sprint, whose time and guidance it does not know: load a "
                "SANA model, or a ControlNet whose metadata say trained_for = sprint."
            )

    def check(self, base) -> list[str]:
        if not isinstance(base, SanaConfig):
            return []  # `require_model` refuses it
        found, kind = [], kind_of(base)
        told = self.control_model.config.trained_for
        if kind not in told and kind != SPRINT:
            names = " and ".join(KINDS[one] for one in told)
            reason = ", which has other features (qk-norm)" if kind == SANA_1_5 else ""
            found.append(f"Load a {names} model: this ControlNet was not trained for {KINDS[kind]}{reason}.")
        if self.is_bright:
            found.append("Invert the control image: SANA's ControlNet expects white lines on black, and it is bright.")
        return found

    def size_of_run(self) -> tuple[int, int, int]:
        own = self.control_model.config.blocks
        return own.sample_size**2, own.hidden_size, own.depth
