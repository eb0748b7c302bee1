"""What a robot needs to go on when it changes: a nominal model, a flow, a model in context, learned in simulation."""
