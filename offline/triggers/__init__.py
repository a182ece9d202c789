"""The trigger families of the inversion, one file each."""

from detrigger.offline.triggers.base import TriggerBank
from detrigger.offline.triggers.blend import BlendBank
from detrigger.offline.triggers.kernel import KernelBank
from detrigger.offline.triggers.patch import PatchBank
from detrigger.offline.triggers.sine import SineBank
from detrigger.offline.triggers.spot import SpotBank
from detrigger.offline.triggers.sticker import StickerBank
from detrigger.offline.triggers.tone import ToneBank
from detrigger.offline.triggers.warp import WarpBank

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
