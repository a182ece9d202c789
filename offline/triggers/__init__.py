"""The trigger families of the inversion, one file each."""

from offline.triggers.base import TriggerBank
from offline.triggers.blend import BlendBank
from offline.triggers.kernel import KernelBank
from offline.triggers.patch import PatchBank
from offline.triggers.sine import SineBank
from offline.triggers.spot import SpotBank
from offline.triggers.sticker import StickerBank
from offline.triggers.tone import ToneBank
from offline.triggers.warp import WarpBank

UNIVERSAL: tuple[type[TriggerBank], ...] = (
    SpotBank,
    PatchBank,
    StickerBank,
    BlendBank,
    SineBank,
    WarpBank,
    ToneBank,
    KernelBank,
)
"""Families with one trigger for all images, which can be screened class by class."""
