"""The bundled small student."""
