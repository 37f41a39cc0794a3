"""Shell around every HTTP request, for all that answer: the gateway, a replica or a job."""
