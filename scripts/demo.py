"""Serve a web page, for this machine only, to try a student on."""

from command import run

from student_jax.demo.server import DemoConfig, demo

if __name__ == "__main__":
    run(demo, DemoConfig, __doc__)
