"""Who answers: upstreams, the built-in model and the scripted one, all behind `base.Model`."""
