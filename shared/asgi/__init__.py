"""What every HTTP front does for a request, whoever answers it: the gateway, a replica or a job."""
