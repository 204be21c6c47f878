"""The first room: data sets, from files or drawn, to ``Batch``. Import from its modules; this one stays light."""
