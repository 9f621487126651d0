"""Components by name: the registries that packages of components and third parties fill."""

from metatoolkit.components.registry import Registry as Registry
